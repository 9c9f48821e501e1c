"""Agents over the modules of a framework; a framework is imported when its first agent is made."""
