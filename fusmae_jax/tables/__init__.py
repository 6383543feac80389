"""The tables of a study: everything they need is pretrained and evaluated, or taken up where it stopped."""
