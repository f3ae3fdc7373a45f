"""Attention over packed rows: what each query sees, and the kernels that compute it."""
