"""The story: one file per long-running loop. Loops do not import each other."""
