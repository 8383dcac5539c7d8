localrules:
    corpus,


rule corpus:
    input:
        environment_ready("eval"),
        files=lambda wildcards: corpus_files(wildcards.corpus),
    output:
        rows="<results>/corpora/{corpus}.jsonl",
        manifest="<results>/corpora/{corpus}.manifest.json",
    log:
        "<logs>/corpus/{corpus}.log",
    conda:
        "../envs/eval.yaml"
    threads: asks("corpus", "threads", 1)
    resources:
        mem_mb=asks("corpus", "mem_mb", 4000),
        runtime=asks("corpus", "runtime", 60),
    params:
        definition=lambda wildcards: options({"definition": config["corpora"][wildcards.corpus]}),
        hub_mirror=options({"hub_mirror": config["hub_mirror"]}),
    shell:
        "$ON_GPUS 0 --mem-mb {resources.mem_mb} --"
        " $EVAL_PYTHON $SCRIPTS/make_corpus.py {params.definition} {params.hub_mirror}"
        " --output {output.rows} >{log} 2>&1"
