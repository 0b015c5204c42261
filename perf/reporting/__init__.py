"""What a run of the harness found, for people: tables for the terminal, figures, and one page that opens offline."""
