"""One webhook request as bytes, and the verdict on its response."""
