"""Tasks as pairs of prompts that differ in little and go on with different tokens."""
