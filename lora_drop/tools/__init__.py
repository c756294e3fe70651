"""Scripts that make what the repository shows: tables and pictures, from real runs."""
