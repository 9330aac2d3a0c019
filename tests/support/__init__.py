"""Support for the tests. Standard library only, so that it runs on any Debian as it is."""
