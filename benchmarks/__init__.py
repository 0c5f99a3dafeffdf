"""What private training costs, and how near the truth epsilon is: scripts to run."""
