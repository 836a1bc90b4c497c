"""Many trials in one step: one copy of the base model, a slot of adapter weights for each trial."""
