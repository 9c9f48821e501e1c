"""PyTorch agents on CartPole for trials in processes; importable there."""

SPACE = {"learning_rate": ("log_float", 1e-4, 1e-2)}


def agent(params):
    import gymnasium

    from tensor_optix import make_agent

    env = gymnasium.make("CartPole-v1")
    try:
        return make_agent("PPO", env, framework="torch", hyperparams=params, hidden_sizes=(16,))
    finally:
        env.close()


def pipeline():
    from tensor_optix import BatchPipeline

    return BatchPipeline(env_id="CartPole-v1", n_steps=128, seed=0)


def threads(agent):
    """Threads that PyTorch may use here."""
    import torch

    return float(torch.get_num_threads())
