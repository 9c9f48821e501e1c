"""The brain and the mathematics: pure functions over pytrees."""
