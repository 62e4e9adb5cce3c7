"""The yardsticks: what the gateway costs, beside its peers and its floors, in one run.

Owns measuring and reporting; refuses to judge correctness beyond "this answer was whole"."""
