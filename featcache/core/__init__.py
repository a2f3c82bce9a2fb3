"""The ground: errors, files, digests, recipes, leases, progress, the project file. Each module is a face of its own."""
