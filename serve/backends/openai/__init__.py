"""Another engine behind the same pages: any server that speaks OpenAI's completions over HTTP."""
