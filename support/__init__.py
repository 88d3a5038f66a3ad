"""What you need not read to understand the method; one line a file.

    command line and files
        cli          arguments with their ranges and true defaults, mistakes in one line
        runs         a phase's own folder: opened, resumed, logged, saved
        phases       what others read of a phase: arguments, weights, skills, fingerprints
        files        JSON lines, skills that were checked, random streams with names
        records      what is written of an episode, and the metrics that every phase has
        results      an evaluation's folder
    models
        models       which models can be played; a self-check when one is loaded
        large        LoRA, precision, saving
        chat         chat prompts that are too long
        text         words, and how telling they are
        constrain    constrained decoding: what may follow a token
    rollout and update
        sampler      responses by transformers, with a KV cache
        vllm_engine  responses by vLLM
        writing      free text: skills
        softmax      log-probs of tokens, among what was possible
        packing      rows -> sequences -> micro-batches
        training     an update over threads, processes and memory
        memory       what fits on a GPU
        parallel     several processes
    what is shown
        intervals    95 % intervals over games
        figures      plots
        traces       a few episodes, token by token
        report       a run in one page
"""
