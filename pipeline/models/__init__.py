"""Networks: where they are, how they are loaded, where they are tapped, and forwards that stop early or are spliced."""
