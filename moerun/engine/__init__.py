"""The hand on llama.cpp: the only room that imports it."""
