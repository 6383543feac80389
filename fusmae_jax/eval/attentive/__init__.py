"""The attentive probe: learned queries that choose among frozen tokens."""
