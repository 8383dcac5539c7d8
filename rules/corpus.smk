rule make_corpus:
    input:
        files=lambda wildcards: unmoved(paths.corpus_files(config, wildcards.corpus)),
    output:
        rows="<results>/corpora/{corpus}.jsonl",
        manifest="<results>/corpora/{corpus}.manifest.json",
    log:
        "<logs>/make_corpus/{corpus}.log",
    localrule: True
    conda:
        "../envs/eval.yaml"
    threads: asks("make_corpus", "threads", 1)
    resources:
        mem_mb=asks("make_corpus", "mem_mb", 4000),
        runtime=asks("make_corpus", "runtime", 60),
        # No parameter: where a mirror is changes nothing that is fetched.
        hub_mirror=lambda wildcards: options({"hub_mirror": config["hub_mirror"]}),
    params:
        code=code("make_corpus.py"),
        definition=lambda wildcards: options({"definition": config["corpora"][wildcards.corpus]}),
    shell:
        '"$WORKFLOW_PYTHON" "$SCRIPTS/run_job.py" 0 --credentials --mem-mb {resources.mem_mb} --'
        ' "$EVAL_PYTHON" "$SCRIPTS/make_corpus.py" {params.definition} {resources.hub_mirror}'
        " --output {output.rows:q} >{log:q} 2>&1"
