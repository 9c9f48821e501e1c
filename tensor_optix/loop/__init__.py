"""The drivers, and what they share: events, run directory, backend start-up."""
