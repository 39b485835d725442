"""Wrong command lines: one line on standard error that says what is wrong and how to fix it, and exit code 2.

One row of `WRONG` is a command line, as typed in a shell, and the words that its message must contain.
Nothing is trained and nothing is written.
"""

import shlex

import numpy as np
import pandas as pd
import pytest

TRAIN = "train -d colored-digits --steps 2"
SWEEP = "sweep --data colored-digits --algorithms erm --steps 2 --dry-run"
COMPARE = "compare t.csv -t died -e hospital"
HUGE = 10**9

WRONG = [
    # commands and arguments
    ("trian", 'Unknown command "trian"', 'Did you mean "train"?'),
    ("train extra", "unexpected argument 'extra'", "envariant train --help"),
    ("train --verbose", "Unknown option: --verbose", "envariant train --help"),
    ("train --algoritm irm", "Unknown option: --algoritm", "Did you mean --algorithm?"),
    ("train --algorithm", "--algorithm: needs a value"),
    ("train -a erm -a irm", "-a is given twice; give it once"),
    (f"{TRAIN} --steps 3", "--steps is given twice; give it once"),
    (f"{TRAIN} --json yes", "unexpected argument 'yes'"),
    (f"{TRAIN} --compile yes", "unexpected argument 'yes'"),
    (f"{TRAIN} --adapt x", "Unknown option: --adapt"),
    # whole numbers
    ("train -d colored-digits --steps 0", "steps must be at least 1; got 0"),
    ("train -d colored-digits --steps -5", "steps must be at least 1; got -5"),
    ("train -d colored-digits --steps 1.5", "--steps: expected a whole number; got '1.5'"),
    ("train -d colored-digits --steps 1e3", "--steps: expected a whole number; got '1e3'"),
    ("train -d colored-digits --steps ''", "--steps: its value is empty; give a value or omit the option"),
    (f"{TRAIN} --batch-size 0", "batch_size must be at least 1; got 0"),
    (f"{TRAIN} --batch-size -1", "batch_size must be at least 1; got -1"),
    (f"{TRAIN} --batch-size 2.5", "--batch-size: expected a whole number; got '2.5'"),
    (f"{TRAIN} --batch-size all", "--batch-size: expected a whole number; got 'all'"),
    (f"{TRAIN} --evaluate-every 0", "evaluate_every must be at least 1; got 0"),
    (f"{TRAIN} --evaluate-every 3", "evaluate_every must be at most the number of steps, 2; got 3"),
    (f"{TRAIN} --replicas 0", "replicas must be at least 1; got 0"),
    (f"{TRAIN} --replicas 2.5", "--replicas: expected a whole number; got '2.5'"),
    (f"{TRAIN} --seed -1", "seed must be at least 0; got -1"),
    (f"{TRAIN} --seed 4294967296", "seed must lie below 2³²; got 4294967296"),
    (f"{TRAIN} --seed abc", "--seed: expected a whole number; got 'abc'"),
    # numbers
    (f"{TRAIN} --lr 0", "learning_rate must be a finite number above 0; got '0'"),
    (f"{TRAIN} --lr -1", "learning_rate must be a finite number above 0; got '-1'"),
    (f"{TRAIN} --lr nan", "learning_rate must be a number or a schedule"),
    (f"{TRAIN} --lr inf", "learning_rate must be a number or a schedule"),
    (f"{TRAIN} --lr true", "learning_rate must be a number or a schedule"),
    (f"{TRAIN} --lr fast", "learning_rate must be a number or a schedule", "linear"),
    (f"{TRAIN} --lr 'step(1e-3)'", "step: needs after, at"),
    (f"{TRAIN} --lr 'step(1e-3, 1e-4, at=-5)'", "step: at must be a step number from 0", "got -5"),
    (f"{TRAIN} --lr 'step(1e-3, 1e-4, at=150%)'", "a percentage must be in [0, 100], got 150%"),
    (f"{TRAIN} --lr 'step(1e-3, -1e-4, at=1)'", "learning_rate must be at least 0 at every step"),
    (f"{TRAIN} --lr 'linear(0, 0, until=1)'", "learning_rate must be at least 0 at every step, and not always 0"),
    (f"{TRAIN} --weight-decay -1", "weight_decay must be at least 0; got -1.0"),
    (f"{TRAIN} --weight-decay nan", "weight_decay must be a number; got nan"),
    (f"{TRAIN} --weight-decay none", "weight_decay must be a number; got 'none'"),
    (f"{TRAIN} --weight-decay 1e400", "weight_decay must be a number; got inf"),
    (f"{TRAIN} --holdout-fraction 1", "holdout_fraction must lie below 1; got 1.0"),
    (f"{TRAIN} --holdout-fraction -0.1", "holdout_fraction must be at least 0; got -0.1"),
    (f"{TRAIN} --holdout-fraction 20%", "--holdout-fraction: expected a number; got '20%'"),
    (f"{TRAIN} --holdout-fraction 1e-9", "holdout_fraction: 1e-09 of the 599 rows", "leaves no rows for training or for validation"),
    (f"{TRAIN} --memory lots", "memory: expected an amount such as 8GB or 512MiB", "got 'lots'"),
    (f"{TRAIN} --memory 0", "memory: expected an amount such as 8GB or 512MiB", "got '0'"),
    (f"{TRAIN} --memory=-5GB", "memory: expected an amount such as 8GB or 512MiB", "got '-5GB'"),
    # words
    (f"{TRAIN} --precision float16", "--precision", '"bfloat16", "tf32"'),
    (f"{TRAIN} --device gpu", "--device", '"auto", "cpu", "cuda"'),
    (f"{TRAIN} --freeze head", "--freeze", '"features"'),
    (f"{TRAIN} --freeze features", 'freeze="features" needs pretrained features: set init as well'),
    (f"{TRAIN} --execution fast", "unknown execution 'fast'; known: auto, sequential, stacked"),
    (f"{TRAIN} --execution 'stacked(group=0)'", "stacked: group must be at least 1, got 0"),
    (f"{TRAIN} --execution 'stacked(group=two)'", "stacked: group must be a whole number; got two"),
    (f"{TRAIN} --test-environments nowhere", "unknown environment 'nowhere'; known: flip-0.1, flip-0.2, flip-0.9"),
    (
        f"{TRAIN} --test-environments flip-0.1 --test-environments flip-0.1",
        "test_environments must name every environment once; 'flip-0.1' is named twice",
    ),
    (
        f"{TRAIN} --test-environments flip-0.1 --test-environments flip-0.2 --test-environments flip-0.9",
        "all environments are held out; none is left to train on",
    ),
    # models and optimizers
    (f"{TRAIN} --model mpl", "unknown model 'mpl'; did you mean 'mlp'?"),
    (f"{TRAIN} --model ''", "--model: its value is empty"),
    (f"{TRAIN} --model 'mlp 8'", "cannot read 'mlp 8': expected name or name(key=value, …) for the model"),
    (f"{TRAIN} --model 'mlp(8'", "cannot read 'mlp(8'"),
    (f"{TRAIN} --model 'mlp(width=8)'", "mlp: unknown setting 'width'", "known: activation, batch_norm, depth, dropout, dropout_position, hidden, init"),
    (f"{TRAIN} --model 'mlp(hidden=0)'", "mlp: hidden widths must be whole numbers of at least 1; got 0"),
    (f"{TRAIN} --model 'mlp(hidden=(8,0))'", "mlp: hidden widths must be whole numbers of at least 1; got (8, 0)"),
    (f"{TRAIN} --model 'mlp(hidden=())'", "mlp: hidden widths must be whole numbers of at least 1; got ()"),
    (f"{TRAIN} --model 'mlp(hidden=2.5)'", "mlp: hidden must be a whole number, or several in parentheses"),
    (f"{TRAIN} --model 'mlp(hidden=true)'", "mlp: hidden must be a whole number, or several in parentheses"),
    (f"{TRAIN} --model 'mlp(hidden=8,hidden=9)'", "expected every key once, but 'hidden' is given twice"),
    (f"{TRAIN} --model 'mlp(8, 2, 3)'", "mlp: takes at most 2 unnamed values; got 3"),
    (f"{TRAIN} --model 'mlp(depth=0)'", "mlp: depth must be at least 1, got 0"),
    (f"{TRAIN} --model 'linear(3)'", "linear: takes no settings"),
    (f"{TRAIN} --model lenet", "lenet: requires square, channels-first images", "mlp accepts any shape"),
    (f"{TRAIN} --optimizer adm", "unknown optimizer 'adm'; did you mean 'adam'?"),
    (f"{TRAIN} --optimizer 'adam(lr=0.1)'", "adam: unknown setting 'lr'"),
    (f"{TRAIN} --optimizer 'adam(beta1=1.5)'", "adam: beta1 must be in [0, 1), got 1.5"),
    (f"{TRAIN} --optimizer 'adam(epsilon=nan)'", "adam: epsilon must be a number; got nan"),
    (f"{TRAIN} --optimizer 'adam(reset=-1)'", "adam: reset must be at least 0, got -1"),
    (f"{TRAIN} --optimizer 'sgd(momentum=1.5)'", "sgd: momentum must be in [0, 1), got 1.5"),
    (f"{TRAIN} --optimizer 'sgd(nesterov=true)'", "sgd: nesterov needs a momentum above 0, such as momentum=0.9"),
    (f"{TRAIN} --optimizer 'sgd(0.9, momentum=0.8)'", "sgd: 'momentum' is given twice"),
    # augmentation and pretraining
    (f"{TRAIN} --augmentation rotate", "unknown augmentation 'rotate'; known: affine"),
    (f"{TRAIN} --augmentation 'affine(rotation=400)'", "affine: rotation must be in [0, 180], got 400"),
    (f"{TRAIN} --augmentation 'affine(scale=1)'", "affine: scale must be in [0, 1), got 1"),
    (f"{TRAIN} --init rcf", "unknown init 'rcf'; did you mean 'rfc'?"),
    (f"{TRAIN} --init 'erm(steps=0)'", "erm: steps must be at least 1, got 0"),
    (f"{TRAIN} --init 'erm(l2=-1)'", "erm: l2 must be at least 0, got -1"),
    (f"{TRAIN} --init 'rfc(rounds=0)'", "rfc: rounds must be at least 1, got 0"),
    # algorithms
    (f"{TRAIN} -a irmm", "unknown algorithm 'irmm'; did you mean 'irm'?"),
    (f"{TRAIN} -a 'irm +'", "cannot read 'irm +'"),
    (f"{TRAIN} -a 'irm, vrex'", "cannot read 'irm, vrex'"),
    (f"{TRAIN} -a 'vrex + vrex'", "vrex + vrex: the penalty vrex occurs twice"),
    (f"{TRAIN} -a 'erm + erm'", "erm + erm: erm occurs twice; name it once"),
    (f"{TRAIN} -a 'dann + irm'", "dann + irm: dann is a training step", "combined with other parts"),
    (f"{TRAIN} -a 'irm(coefficient=-1)'", "IRM: coefficient must be at least 0, got -1"),
    (f"{TRAIN} -a 'irm(coefficient=nan)'", "unknown schedule 'nan'"),
    (f"{TRAIN} -a 'irm(coefficient=1e13)'", "must lie within ±1e+12"),
    (f"{TRAIN} -a 'irm(coefficient=true)'", "constant: value must be a number; got 'true'"),
    (f"{TRAIN} -a 'irm(1, coefficient=2)'", "irm: 'coefficient' occurs twice"),
    (f"{TRAIN} -a 'irm(1, 2)'", "irm: settings must be named, as in irm(l2=0.001)"),
    (f"{TRAIN} -a 'irm(form=cubed)'", "irm: form must be squared or halves or dummies; got cubed"),
    (f"{TRAIN} -a 'irm(l2=-1)'", "Composition: l2 must be at least 0, got -1"),
    (f"{TRAIN} -a 'irm(coef=1)'", "irm: unknown setting 'coef'", "known: coefficient"),
    (f"{TRAIN} -a 'vrex(coefficient=step(1, 5, at=-1))'", "step: at must be a step number from 0", "got -1"),
    (f"{TRAIN} -a 'vrex(coefficient=step(1, -5, at=1))'", "VREx: coefficient must be at least 0"),
    (f"{TRAIN} -a 'vrex(coefficient=poly(k=-1, p=2))'", "VREx: coefficient must be at least 0"),
    (f"{TRAIN} -a 'vrex(coefficient=exp(1, 0))'", "exp: factor must be positive"),
    (f"{TRAIN} -a 'vrex(coefficient=stages(1, 2, 3, at=(5, 5)))'", "stages: 'at' must contain increasing step numbers"),
    (f"{TRAIN} -a 'mm-rex(coefficient=-3)'", "MMREx: coefficient must be at least 0, got -3"),
    (f"{TRAIN} -a 'and-mask(threshold=1.7)'", "AndMask: threshold must be in [0, 1], got 1.7"),
    (f"{TRAIN} -a 'and-mask(mean=harmonic)'", "and-mask: mean must be arithmetic or geometric; got harmonic"),
    (f"{TRAIN} -a 'sand-mask(steepness=-1)'", "SandMask: steepness must be positive, got -1"),
    (f"{TRAIN} -a 'groupdro(rate=-1)'", "GroupDRO: rate must be at least 0, got -1"),
    (f"{TRAIN} -a 'eqrm(quantile=1.5)'", "EQRM: quantile must be α in (0, 1)"),
    (f"{TRAIN} -a 'eqrm(burn_in=-1)'", "EQRM: burn_in must be at least 0, got -1"),
    (f"{TRAIN} -a 'cad(max_rows=0)'", "CAD: max_rows must be at least 1, got 0"),
    (f"{TRAIN} -a 'fishr(memory=1)'", "Fishr: memory must be in [0, 1), got 1"),
    (f"{TRAIN} -a 'mtl(memory=2)'", "MTL: memory must be in [0, 1], got 2"),
    (f"{TRAIN} -a 'dann(beta1=1)'", "DANN: beta1 must be in [0, 1), got 1"),
    (f"{TRAIN} -a 'dann(depth=1)'", "DANN: depth must be at least 2, got 1"),
    (f"{TRAIN} -a 'transfer(delta=-1)'", "Transfer: delta must be at least 0, got -1"),
    (f"{TRAIN} -a 'trm(warm_up=-1)'", "TRM: warm_up must be at least 0, got -1"),
    (f"{TRAIN} -a 'urm(smoothing=1)'", "URM: smoothing must be in [0, 1), got 1"),
    (f"{TRAIN} -a 'eiil(reference_steps=-1)'", "EIIL: reference_steps must be at least 0, got -1"),
    (f"{TRAIN} -a dann --weight-decay 0.1", "dann: has a built-in optimizer", "remove optimizer and weight_decay"),
    (f"{TRAIN} -a boosted-treess", "unknown algorithm 'boosted-treess'; did you mean 'boosted-trees'?"),
    (f"{TRAIN} -a 'boosted-trees(depth=2)'", "boosted-trees: takes no settings in a string; pass an object"),
    ("train -d colored-digits -a boosted-trees --lr 0.1", "is fitted without gradient steps, so these options do not apply; remove them: learning_rate"),
    (f"{TRAIN} -a majority-class --set l2=1", "majority-class: takes no hyperparameters"),
    # hyperparameters
    (f"{TRAIN} -a irm --set coefficient=1 --set coefficient=2", "--set: coefficient is given twice"),
    (f"{TRAIN} -a erm --set risk-aggregator=sum --set risk_aggregator=mean", "--set: risk_aggregator is given twice"),
    (f"{TRAIN} -a irm --set coefficient", "--set: expected KEY=VALUE; got 'coefficient'"),
    (f"{TRAIN} -a irm --set coefficient=", "--set: expected KEY=VALUE; got 'coefficient='"),
    (f"{TRAIN} -a irm --set coeficient=1", "irm: unknown setting 'coeficient'; did you mean 'coefficient'?"),
    (f"{TRAIN} -a irm --set coefficient=-1", "IRM: coefficient must be at least 0, got -1"),
    (f"{TRAIN} -a erm --set risk_aggregator=men", "erm: unknown risk_aggregator 'men'; did you mean 'mean'?"),
    # data
    ("train -d colored-mnits", "unknown data set 'colored-mnits'; did you mean 'colored-mnist'?"),
    ("train -d t.csv", "data: 't.csv' is a file", "table('t.csv', target=…, environment=…)"),
    ("train -d colored-digits:irm", "colored-digits: has no protocols; got ':irm'"),
    ("train -d colored-mnist:domain", "unknown protocol 'domain'; did you mean 'domainbed'?"),
    ("train -d 'colored-mnist(size=30)'", "colored-mnist: size must be 28, 14 or 7; got 30"),
    ("train -d 'colored-digits(label_noise=2)'", "colored-digits: label_noise must lie in [0, 1]; got 2"),
    ("train -d 'colored-digits(noise=0.1)'", "unknown setting 'noise'; did you mean 'label_noise'?"),
    ("train -d 'colored-digits(test_flips=(0.9, 0.9))'", "test_flips must differ from one another"),
    ("train -d 'colored-digits(train_flips=0.1)' -a irm", "irm: needs at least 2 training environments"),
    ("train -d colored-digits --mnist nowhere", "--mnist: MNIST folder nowhere: there is no such folder"),
    ("train -d table", "table: needs the path of a file first, as in table('patients.csv', target=died"),
    ("train -d \"table('t.csv')\"", "table: set target=… and environment=… to the names of two columns of 't.csv'"),
    ("train -d \"table('t.csv', target=dead, environment=hospital)\"", "lacks target column 'dead' (did you mean 'died'?)"),
    ("train -d \"table('t.csv', target=died, environment=hospital, min_rows=0)\"", "table: min_rows must be at least 1, got 0"),
    ("train -d \"table('t.csv', target=died, environment=hospital, min_rows=x)\"", "table: min_rows must be a whole number; got x"),
    ("train -d \"table('t.csv', target=died, environment=hospital, task=ranking)\"", "unknown task 'ranking'"),
    ("train -d image-folders", "image-folders: needs root, as in image-folders(root=…)"),
    ("train -d \"image-folders('nowhere')\"", "image-folders: cannot list"),
    ("train -d \"image-folders('.', size=0)\"", "image-folders: size must be a whole number of at least 1; got 0"),
    ("train -d \"wilds('x')\"", "must have a name such as camelyon17_v1.0"),
    (f"{TRAIN} -o t.csv", "t.csv: cannot be written"),
    (f"{TRAIN} -o ''", "-o: its value is empty"),
    # numbers far beyond the machine, and texts that break the parser
    (f"{TRAIN} --batch-size {HUGE}", "memory: a step on 2,000,000,000 rows", "use a smaller batch_size or model"),
    (f"{TRAIN} --batch-size 99999999999999999999", "batch_size must be at most 2⁵³"),
    (f"{TRAIN} --model 'mlp(hidden={HUGE})'", "memory: mlp(hidden=1000000000)", "use a smaller model"),
    (f"{TRAIN} --model 'mlp(hidden={2**99})'", "mlp: hidden must lie within ±2⁵³"),
    (f"{TRAIN} --model 'mlp(hidden=(4, {2**99}))'", "memory: mlp(hidden=(4, 633825"),
    (f"{TRAIN} --model 'mlp(hidden=2, depth=100000)'", "mlp: depth must be at most 1,000, got 100000"),
    (f"{TRAIN} --model 'mlp(hidden={'-' * 5000}1)'", "cannot read 'mlp(hidden=---"),
    (f"{TRAIN} --model 'mlp(hidden={'-' * 20000}1)'", "expected at most 10,000 characters, but it has 20,013"),
    (f"{TRAIN} --model '{'mlp(' * 40}1{')' * 40}'", "expected at most 30 nested values"),
    (f"{TRAIN} --model 'mlp(\udcff)'", "cannot read 'mlp(\\udcff)'"),
    (f"{TRAIN} --replicas {HUGE}", "replicas must be at most 100,000; got 1000000000"),
    (f"train -d colored-digits --steps {HUGE}0", "steps must be at most 1,000,000,000"),
    (f"{TRAIN} -a 'dann(width={HUGE})'", "memory: dann with auxiliary networks of", "make them smaller"),
    (f"{TRAIN} -a 'dann(depth=100000)'", "DANN: depth must be at most 100, got 100000"),
    (f"{TRAIN} -a 'arm(width={HUGE})'", "ARM: width must be at most 4,096"),
    (f"{TRAIN} -a 'trm(inner_steps={HUGE})'", "TRM: inner_steps must be at most 1,000"),
    (f"{TRAIN} -a 'eqrm(burn_in={2**99})'", "EQRM: burn_in must lie within ±2⁵³"),
    (f"{TRAIN} --init 'rfc(rounds={HUGE})'", "rfc: rounds must be at most 100"),
    (f"{SWEEP} --replicas {HUGE}", "are 1,000,000,000 runs; at most 1,000,000 can be planned"),
    (f"{SWEEP} --n-trials {HUGE}", "are 3,000,000,000 runs; at most 1,000,000 can be planned"),
    (f"{SWEEP} --batch-size {HUGE}", "memory: a step on 2,000,000,000 rows"),
    (f"{SWEEP} --workers {HUGE}", "--workers: must be in [1, "),
    ("sweep huge.toml --dry-run", "are 1,000,000,000 runs; at most 1,000,000 can be planned"),
    (f"data shift colored-digits --n-trials {HUGE}", "shift: n_trials must be at most 1,000"),
    # sweep
    ("sweep", "sweep: give a study file, or --data and --algorithms"),
    ("sweep nowhere.toml", "nowhere.toml: there is no such file"),
    ("sweep empty.toml", "empty.toml: data is missing; give at least one"),
    ("sweep t.csv", "t.csv: is not valid TOML"),
    ("sweep keys.toml", "keys.toml: unknown key 'replica'; did you mean 'replicas'?"),
    ("sweep ranges.toml", "study: ranges of irm: IRM: coefficient must be at least 0, got step(1, -1, at=60)"),
    (f"{SWEEP} --hyperparameters 0.1", "Unknown option: --hyperparameters"),
    (f"{SWEEP} --learning-rate cosin(1)", "learning_rate must be a number or a schedule", "did you mean 'cosine'?"),
    (f"{TRAIN} --clip nrm(1)", "unknown clipping 'nrm'; did you mean 'norm'?"),
    (f"{TRAIN} --accumulate 2", "accumulate: batch_size is "),
    (f"{TRAIN} --class-weights blanced", "class_weights must be "),
    (f"{TRAIN} --learning-rate groups(heda=1,others=1)", "did you mean 'head'?"),
    ("sweep --data colored-digits --algorithms erm erm", "study: 'erm' occurs twice in algorithms; name it once"),
    ("sweep --data colored-digits colored-digits --algorithms erm", "study: 'colored-digits' occurs twice in data"),
    ("sweep --data colored-digits --algorithms ermm", "unknown algorithm 'ermm'; did you mean 'erm'?"),
    (f"{SWEEP} --n-trials 0", "study: n_trials must be a whole number of at least 1; got 0"),
    (f"{SWEEP} --replicas x", "--replicas: expected a whole number; got 'x'"),
    (f"{SWEEP} --test-environments nowhere", "unknown environment 'nowhere'"),
    (f"{SWEEP} --holdout-fraction 0", "study: holdout_fraction must be a number above 0 and below 1; got 0.0"),
    (f"{SWEEP} --lr-range 0.5", "study: lr_range must be a number of at least 1; got 0.5"),
    (f"{SWEEP} --lr-range inf", "--lr-range: expected a number; got 'inf'"),
    (f"{SWEEP} --seed 1e10", "--seed: expected a whole number; got '1e10'"),
    (f"{SWEEP} --metric acc", "study: unknown metric 'acc'"),
    (f"{SWEEP} --metric RMSE", "metric 'RMSE' does not apply to binary tasks; use one of accuracy"),
    (f"{SWEEP} --workers 0", "--workers: must be in [1, "),
    (f"{SWEEP} --executor slurm", "--executor", '"local", "ray"'),
    (f"{SWEEP} --address auto", "sweep: --address needs --executor ray"),
    (f"{SWEEP} --track-at x", "sweep: --track-at needs --track tensorboard or --track mlflow"),
    (f"{SWEEP} --model mlpp", "unknown model 'mlpp'; did you mean 'mlp'?"),
    (f"{SWEEP} --optimizer adamm", "unknown optimizer 'adamm'; did you mean 'adam'?"),
    (f"{SWEEP} --evaluate-every 10", "evaluate_every must be at most the number of steps, 2; got 10"),
    (f"{SWEEP} --memory x", "memory: expected an amount such as 8GB"),
    (f"{SWEEP} --execution x", "unknown execution 'x'"),
    # compare
    ("compare", "--file: needs a value"),
    ("compare t.csv -t died", "for a table, set the options 'target' and 'environment' to the names of two columns"),
    ("compare nowhere.csv -t died -e hospital", "nowhere.csv: there is no such file"),
    ("compare t.csv -t dead -e hospital", "lacks target column 'dead' (did you mean 'died'?)"),
    ("compare t.csv -t died -e died", "a column can have one role only"),
    ("compare t.csv -t '' -e hospital", "-t: its value is empty"),
    (f"{COMPARE} --task ranking", "--task", '"binary", "multiclass", "regression"'),
    (f"{COMPARE} --algorithms irm irm", "study: 'irm' occurs twice in algorithms"),
    (f"{COMPARE} --algorithms boosted-treess", "did you mean 'boosted-trees'?"),
    (f"{COMPARE} --algorithms 'vrex(coefficient=-1)'", "VREx: coefficient must be at least 0, got -1"),
    (f"{COMPARE} --metric acc", "unknown metric 'acc'"),
    (f"{COMPARE} --n-trials 0", "n_trials must be a whole number of at least 1; got 0"),
    (f"{COMPARE} --replicas {HUGE}", "runs; at most 1,000,000 can be planned"),
    (f"{COMPARE} --exclude wardd", "lacks column 'wardd' (did you mean 'ward'?)"),
    (f"{COMPARE} --sample-weight ward", "sample_weight 'ward' must be a number of at least 0 in every row"),
    (f"{COMPARE} --min-rows 0", "compare: min_rows must be at least 1, got 0"),
    (f"{COMPARE} --max-rows -1", "max_rows: must be at least 5, got -1"),
    (f"{COMPARE} --workers 0", "compare: workers must be at least 1, got 0"),
    (f"{COMPARE} --budget 0", "budget: expected a duration such as 90s, 10m or 1.5h, got '0'"),
    (f"{COMPARE} --budget=-5m", "budget: expected a duration such as 90s, 10m or 1.5h, got '-5m'"),
    (f"{COMPARE} --seed -1", "seed must be a whole number in [0, 2³²); got -1"),
    (f"{COMPARE} --encoding klingon", "unknown encoding: klingon"),
    (f"{COMPARE} --address auto", "compare: the option 'address' requires executor='ray'"),
    (f"{COMPARE} --model mlpp", "unknown model 'mlpp'; did you mean 'mlp'?"),
    (f"{COMPARE} --test-environments north", "Unknown option: --test-environments"),
    # predict, runs, report
    ("predict", "--model: needs a value"),
    ("predict model", "predict: give a table to predict, or --onnx FILE to export the network"),
    ("predict nowhere t.csv", "nowhere: holds no model"),
    ("predict model nowhere.csv", "nowhere.csv: there is no such file"),
    ("predict model other.csv", "other.csv: lacks columns 'age', 'ward'; its columns: a, b"),
    ("predict model t.csv -o out.txt", "out.txt: predictions are written as CSV; the file name must end in .csv"),
    ("predict model t.csv more.csv", "unexpected argument 'more.csv'"),
    ("predict model --onnx x.txt", "x.txt: the name of an ONNX file must end in .onnx"),
    ("runs lst study", 'Unknown command "lst". Did you mean "list"?'),
    ("runs list nowhere", "nowhere: holds no runs", "give the folder of a run or a study"),
    ("runs list study --state finished", "unknown state 'finished'; known: done, failed, planned, running"),
    ("runs show study x", "RUN: expected a whole number; got 'x'"),
    ("runs show study 999", "study: has no run 999; it has 1 runs"),
    ("runs retry study", "runs: no run selected; give run numbers, or --failed"),
    ("runs rm study 999", "holds no run 999"),
    ("runs export study", "--out: needs a value"),
    ("runs export study -o x.txt", "x.txt: must end in .csv or .parquet"),
    ("runs track study --to wandb", "--to", '"tensorboard", "mlflow"'),
    ("report", "report: needs at least one run"),
    ("report nowhere", "nowhere: holds no runs"),
    ("report study", "study is a study of many runs, and its page is study/report.html"),
    ("report study study", "report: study is given twice; give it once"),
    ("report study -o page.txt", "page.txt: the file name of a report must end in .html"),
    # reproduce, algorithms, demo, data
    ("reproduce sjtu-2024", "unknown reproduction 'sjtu-2024'; did you mean 'sjtu-2023'?"),
    ("reproduce sjtu-2023 --profile huge", "--profile", '"quick", "full"'),
    ("reproduce sjtu-2023 --only nothing", "sjtu-2023: unknown section 'nothing'; known: and-mask"),
    ("reproduce sjtu-2023 --resume -o nowhere", "nowhere: has no stored runs to resume"),
    ("reproduce sjtu-2023 -o t.csv", "t.csv: is a file; choose a folder for the results"),
    ("reproduce sjtu-2023 --list", "reproduce: --list lists all reproductions; leave the name out"),
    ("algorithms irn", "unknown algorithm 'irn'; did you mean 'irm'?"),
    ("algorithms irm vrex", "unexpected argument 'vrex'"),
    ("algorithms irm --markdown", "algorithms: --markdown describes all algorithms; leave the name out"),
    ("algorithms boosted-trees", "'boosted-trees' is a predictor"),
    ("demo --data table", "table: needs the path of a file first"),
    ("demo --data nothing", "unknown data set 'nothing'"),
    ("demo --replicas 0", "replicas must be at least 1; got 0"),
    ("demo --steps x", "--steps: expected a whole number; got 'x'"),
    ("data fetch cifar", "NAME", '"mnist"'),
    ("data fetch --mnist nowhere", "--mnist: MNIST folder nowhere: there is no such folder"),
    ("data show nothing", "unknown data set 'nothing'"),
    ("data show \"image-folders('.')\"", "holds no images of the form domain/class/image"),
    ("data show colored-digits --seed -1", "seed must be at least 0, got -1"),
    ("data show colored-digits --seed 1.5", "--seed: expected a whole number; got '1.5'"),
    ("data show colored-digits -o x.gif", "x.gif: the file name must end in .png or .svg"),
    ("data shift colored-digits --n-trials 0", "shift: n_trials must be at least 1, got 0"),
    ("data shift colored-digits --seed -1", "shift: seed must be at least 0, got -1"),
    ("data shift colored-digits --test-environments nowhere", "unknown environment 'nowhere'"),
    ("data shift colored-digits -o x.gif", "x.gif: the name of an image file must end in .png or .svg"),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder with a table, study files, a planned study and a saved model."""
    from envariant import data, train
    from envariant.saved_model import SavedModel
    from envariant.studies.study import Study, begin

    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    x = draw.normal(size=180)
    table = {
        "hospital": np.array(["north", "south", "east"])[np.arange(180) % 3],
        "age": (50 + 10 * x).round(1),
        "ward": draw.choice(["A&E", "icu"], 180),
        "died": np.where(x + draw.normal(size=180) > 0, "yes", "no"),
    }
    pd.DataFrame(table).to_csv(folder / "t.csv", index=False)
    for name, text in {
        "other.csv": "a,b\n1,2\n",
        "empty.toml": "",
        "huge.toml": f'data = "colored-digits"\nalgorithms = "erm"\nreplicas = {HUGE}\n',
        "keys.toml": 'data = "colored-digits"\nalgorithms = "erm"\nreplica = 3\n',
        "ranges.toml": 'data = "colored-digits"\nalgorithms = "irm"\nn_trials = 2\nranges.irm.coefficient = [-1]\n',
    }.items():
        (folder / name).write_text(text)
    begin(folder / "study", Study("colored-digits", "erm", replicas=1)).close()
    source = data.source(f"table('{folder / 't.csv'}', target=died, environment=hospital)")
    SavedModel.of(source, train(source, steps=2, test_environments=())).save(folder / "model")
    return folder


@pytest.mark.parametrize(
    ("command", "words"), [(row[0], row[1:]) for row in WRONG], ids=[row[0][:80] for row in WRONG]
)
def test_a_wrong_command_line_is_rejected_in_one_line(command, words, files, here, monkeypatch):
    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    done = here(*shlex.split(command))
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("envariant: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert sorted(files.rglob("*")) == before, "nothing is written"


def test_the_table_has_at_least_200_different_command_lines():
    assert len({command for command, *_ in WRONG}) >= 200
