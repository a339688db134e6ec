# make demo: install (without torch), then encode and decode a photo. make test: lint, types and tests.
# make web: a page that decodes .tok files in the browser.
# make cuda: all that needs an NVIDIA GPU. VENV= takes the Python that is there (PYTHON) and installs nothing.
# make bench KODAK=folder VAL=folder VAL_1K=archive METRIC_WEIGHTS=folder: every published number and figure.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
REACHED := import urllib.request as u; u.urlopen('$(TORCH_INDEX)/torch/', timeout=10)
PHOTO ?= bench/samples/coffee.jpg

# The page that decodes in the browser: WEB is a folder that any static server can serve.
WEB ?= web
ORT_WEB := 1.30.0

# Runs of the benchmark go to REPORTS, a folder that git ignores; what is published of them is copied to bench/results/.
REPORTS ?= reports
RUNS := kodak-256 val-256 kodak-larger kodak-native kodak-curve val-1k kodak-beside placeholders
BASELINES := webp,av1,avif,jpeg,jpeg2000,jpegxl
PAIRWISE := psnr,ssim,ms-ssim,lpips-squeeze,eld
SETS := fid-768-stand-in,kid-768-stand-in,smooth,busy
# Where lpips-squeeze.safetensors and inception-768.safetensors are, or the official files.
METRIC_WEIGHTS ?= $(TITOKC_WEIGHTS_DIR)
TITOKC_BENCH := $(BIN)/python -m titokc bench $(if $(METRIC_WEIGHTS),--metric-weights $(METRIC_WEIGHTS))

.PHONY: demo web test slow-test lint fuzz cuda release-check bench folders $(RUNS) clean

demo: $(VENV)/.core
	$(BIN)/python bench/demo.py $(PHOTO) -o demo

web: $(VENV)/.onnx $(WEB)/ort.wasm.bundle.min.mjs
	cp formats/web/* formats/ids.json $(WEB)
	$(BIN)/python -m titokc models export nano --onnx $(WEB)/nano --force
	$(BIN)/python -m titokc encode bench/samples/coffee.jpg --tokens 32 -o $(WEB)/samples/coffee-32.tok --force
	$(BIN)/python -m titokc encode bench/samples/coffee.jpg -o $(WEB)/samples/coffee-128.tok --force
	$(BIN)/python -m titokc encode bench/samples/coffee.jpg --tiles 2x3 -o $(WEB)/samples/coffee-tiles.tok --force
	$(BIN)/python -m titokc encode bench/samples/chelsea.jpg -o $(WEB)/samples/chelsea-128.tok --force
	@echo "serve it: python3 -m http.server -d $(WEB)"

# Two files of ONNX Runtime's package on npm, which is 140 MB.
$(WEB)/ort.wasm.bundle.min.mjs:
	mkdir -p $(WEB)/npm
	npm pack --silent --pack-destination $(WEB)/npm onnxruntime-web@$(ORT_WEB)
	tar -xzf $(WEB)/npm/onnxruntime-web-$(ORT_WEB).tgz -C $(WEB) --strip-components 2 \
		package/dist/ort-wasm-simd-threaded.wasm package/dist/ort.wasm.bundle.min.mjs
	rm -r $(WEB)/npm

test: lint
	$(BIN)/python -m pytest

slow-test: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Of what is committed; downloads nothing.
release-check: $(VENV)/.dev
	$(BIN)/python .ci/release_check.py

# Half a minute each; coverage-guided where atheris can be installed.
fuzz: $(VENV)/.dev
	-$(BIN)/pip install --quiet atheris
	$(BIN)/python tests/fuzz/fuzz_tok.py container --seconds 30
	$(BIN)/python tests/fuzz/fuzz_tok.py pillow --seconds 30

cuda: $(if $(VENV),$(VENV)/.dev)
	$(if $(VENV),$(BIN)/python,$(PYTHON)) bench/cuda.py

# Each run goes on where it stopped; after a change of the weights or of a codec, remove REPORTS first.
bench: $(RUNS)
	$(BIN)/python bench/publish.py $(REPORTS)
	$(BIN)/python bench/curves.py
	$(BIN)/python bench/figure.py $(KODAK)/kodim03.png $(KODAK)/kodim07.png $(KODAK)/kodim15.png $(KODAK)/kodim23.png \
		-o bench/figures/kodak-256.png
	$(BIN)/python bench/figure.py $(KODAK)/*.png --looks -o bench/figures/looks-kodak.jpg
	$(BIN)/python bench/figure.py $$(ls $(VAL)/*.jpg | head -40) --looks -o bench/figures/looks-val.jpg
	$(BIN)/python bench/figure.py $(VAL) --worst bench/results/val-256/rows.jsonl -o bench/figures/worst.png

$(RUNS): folders $(VENV)/.bench

folders:
	@test -d "$(KODAK)" -a -d "$(VAL)" -a -e "$(VAL_1K)" || { \
		echo "needed: KODAK=folder of the 24 photos, VAL=folder of the 100, VAL_1K=archive of the 1,000"; exit 2; }

kodak-256:
	$(TITOKC_BENCH) $(KODAK) --codecs nano,nano:natural,$(BASELINES),jpeg-progressive,thumbhash,blurhash \
		--metrics $(PAIRWISE),mean-psnr,$(SETS),fd-lite0,peak-memory -o $(REPORTS)/$@

val-256:
	$(TITOKC_BENCH) $(VAL) --codecs nano,nano:natural,$(BASELINES) --metrics $(PAIRWISE),mean-psnr,$(SETS) -o $(REPORTS)/$@

kodak-larger:
	$(TITOKC_BENCH) $(KODAK) --bytes 304,400,592 --codecs nano,nano:natural,$(BASELINES) \
		--metrics $(PAIRWISE),$(SETS) -o $(REPORTS)/$@

kodak-native:
	$(TITOKC_BENCH) $(KODAK) --crop none --bytes 206,592 --codecs nano,nano:natural,$(BASELINES) --metrics $(PAIRWISE),$(SETS) \
		-o $(REPORTS)/$@

# Beyond what nano is for: the right end of the curves (bench/curves.py).
kodak-curve:
	$(TITOKC_BENCH) $(KODAK) --bytes 848,1200 --codecs nano,nano:natural,webp,avif,jpegxl,jpeg \
		--metrics $(PAIRWISE),$(SETS) -o $(REPORTS)/$@

# Many pictures, for distances between sets and guards of texture; so nano in one tile, of 32, 64, 96, 128 tokens.
val-1k:
	$(TITOKC_BENCH) $(VAL_1K) --tiles 1x1 --effort 6 --codecs nano,nano:natural,webp,avif,jpeg,jpeg2000,jpegxl \
		--metrics $(PAIRWISE),mean-psnr,$(SETS) --gallery 24 -o $(REPORTS)/$@

# Kodak at the sizes that others have published (bench/beside.py).
kodak-beside:
	$(TITOKC_BENCH) $(KODAK) --crop none --bytes 285,530 --codecs nano,nano:natural,webp,avif,jpegxl --metrics $(PAIRWISE) \
		-o $(REPORTS)/$@

# At the bytes of BlurHash and ThumbHash.
placeholders:
	$(TITOKC_BENCH) $(KODAK) --bytes 20,24,28,32,36,48 --codecs nano,nano:base64,nano:base64:natural,blurhash,thumbhash \
		--metrics psnr,ssim,lpips-squeeze -o $(REPORTS)/$@

# What encodes and decodes: no torch.
$(VENV)/.core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

# torch and torchvision only work as a pair of one origin: from PyTorch's CPU index (200 MB) where there is no NVIDIA GPU
# and it can be reached, else from PyPI.
$(VENV)/.torch: $(VENV)/.core
	if ! nvidia-smi >/dev/null 2>&1 && $(BIN)/python -c "$(REACHED)" 2>/dev/null; \
	then $(BIN)/pip install --quiet --index-url $(TORCH_INDEX) torch torchvision; \
	else $(BIN)/pip install --quiet torch==2.14.1 torchvision==0.29.1; fi
	touch $@

$(VENV)/.dev: $(VENV)/.torch
	$(BIN)/pip install --quiet --editable ".[bench,metrics,train,hub,onnx,dataset,dev]"
	touch $@

$(VENV)/.onnx: $(VENV)/.torch
	$(BIN)/pip install --quiet --editable ".[onnx]"
	touch $@

# The plugin for JPEG XL is under the GPL: a tool of the benchmark, no dependency of the package.
$(VENV)/.bench: $(VENV)/.torch
	$(BIN)/pip install --quiet --editable ".[bench,metrics]" pillow-jxl-plugin
	touch $@

clean:
	rm -rf $(VENV) $(WEB) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
