"""Object stores: S3 and what speaks like it, and the one that the control plane runs itself."""
