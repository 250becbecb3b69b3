"""`run`: a whole profile, step by step; a step whose inputs are unchanged and whose file is intact is skipped."""
