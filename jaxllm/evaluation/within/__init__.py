"""What is put into the sandbox beside a `hal` agent, standard library only; nothing here runs outside of it."""
