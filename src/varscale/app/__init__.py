"""One Hydra entry point per verb, no logic."""
