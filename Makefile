# Every entrance of the project; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin


protos: ## regenerate the committed stubs from proto/
	find proto/mws -name '*_pb2*.py*' -delete
	"$(BIN)/python" -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy="$(BIN)/protoc-gen-mypy" \
	  --plugin=protoc-gen-mypy_grpc="$(BIN)/protoc-gen-mypy_grpc" --python_out=proto --mypy_out=quiet:proto $$(find proto/mws -name '*.proto' | sort)
	"$(BIN)/python" -m grpc_tools.protoc -Iproto --plugin=protoc-gen-mypy_grpc="$(BIN)/protoc-gen-mypy_grpc" \
	  --grpc_python_out=proto --mypy_grpc_out=quiet:proto $$(find proto/mws -name '*_service.proto' | sort)
