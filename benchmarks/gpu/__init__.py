"""GradAug on a GPU: is it right, how fast is it, and what does it wait for."""
