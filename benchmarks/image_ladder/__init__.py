"""The ladder of evidence for image generation: digits against flow matching, and the paper's orderings."""
