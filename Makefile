# Two commands do all set-up on a fresh Debian or Ubuntu machine with Rust: `make demo` and `make test`.

LAB = tests/lab/lab
CARGO = cargo

.PHONY: help demo test check fresh faults bench lab clean-lab

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

demo: ## packages, build, lab, one node cloned, provisioned, joined, shown Ready
	@tests/lab/demo

test: ## everything: formatting, lints, unit and command-line tests, then the lab
	@tests/lab/test

check: ## what needs no lab: formatting, lints, fast tests
	@tests/lab/packages
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	shellcheck tests/lab/lab tests/lab/demo tests/lab/test tests/lab/packages tests/lab/bench tests/lab/faults tests/lab/binary tests/lab/fresh tests/lab/fresh_inside tests/lab/*.sh \
		images/*.sh images/tiny/init images/tiny/rc images/tiny/stop images/tiny/power tests/faults/preload/build templates/first-boot/firstboot.sh templates/steps/run-step.sh .ci/run
	$(CARGO) test --locked

fresh: ## the first commands of a stranger, in clean roots of two Debian releases
	@tests/lab/fresh

faults: ## every fault at every place, hours; writes docs/faults.md
	@tests/lab/faults

bench: ## speed as ratios, side by side in one run
	@tests/lab/bench

lab: ## raise the lab and leave it up: see tests/lab/lab
	@$(LAB) up

clean-lab: ## end the lab and remove all it made, its cache too
	@NODEGRAFT_LAB_NAME=nodegraft-test $(LAB) down
	@NODEGRAFT_LAB_NAME=nodegraft-faults $(LAB) down
	@$(LAB) clean
