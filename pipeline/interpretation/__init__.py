"""Explaining what a latent is on for, and scoring the explanation on contexts that its explainer has not seen."""
