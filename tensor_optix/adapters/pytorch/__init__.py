"""Agents over PyTorch modules; PyTorch itself is imported when the first of them is made."""
