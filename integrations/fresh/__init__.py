"""Cases drawn while a network trains, and cohorts that are still growing."""
