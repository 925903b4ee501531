"""Studies: many trainings that answer one question. Sweeps on Ray Tune, and what is made of their results."""
