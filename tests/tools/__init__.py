"""What tests share: servers, drivers of the code under test, and what looks at its results from outside."""
