"""What tries to break readers and writers: damaged files, killed writers, many threads."""
