"""PostgreSQL: physical copies over the replication protocol, WAL straight into the bucket, restores that prove both."""
