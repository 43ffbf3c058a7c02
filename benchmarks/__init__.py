"""Speed and memory of the library, side by side with what people would use instead; see README.md."""
