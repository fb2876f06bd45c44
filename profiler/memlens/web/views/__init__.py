"""One file per question of the pages; each answers from one opened rank, or from a whole run."""
