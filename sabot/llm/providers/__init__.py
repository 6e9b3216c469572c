"""Providers: one module for each vendor's API, which uses the vendor's own library and is the only one to import it.
`scripted` answers by a script, for tests.
"""
