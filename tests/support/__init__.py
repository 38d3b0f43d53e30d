"""What several test folders share: compiling fakes, running real nodes."""
