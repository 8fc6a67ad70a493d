"""Here so that pytest puts this folder on sys.path: tests in the folders below import `builders` and `llamacpp`."""
