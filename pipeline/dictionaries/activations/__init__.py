"""Activation functions: from pre-activations to codes, one file each, behind one interface."""
