"""Agents over Keras models, and their evaluator."""
