"""Vendors of models: each module speaks one vendor's API through the vendor's own library, and is the only one to import it. `scripted` is
for tests and speaks with nobody.
"""
