"""What other frameworks need that isn't there already, one module for each."""
