"""How connections outlive the process that serves them: what lies where, and what the kernel tells. No policy."""
