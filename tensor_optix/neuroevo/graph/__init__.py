"""Graphs of neurons as padded arrays: their layout, one forward pass, edits, growth of capacity. All pure."""
