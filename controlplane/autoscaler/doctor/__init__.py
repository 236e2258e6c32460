"""What is wrong with an autoscaling recipe for vLLM: pure rules over parsed documents and what a live page showed."""
