; Loaded beside each compiled function: sets by whom its parallel loops are run, TVM's runtime until then.

@__TVMBackendParallelLaunch = weak global ptr null, align 8

; tvm_conv3d_launch_by(address of `launch`), by the convention of TVM's FFI, see pool.ll
define i32 @__tvm_ffi_tvm_conv3d_launch_by(ptr %self, ptr %arguments, i32 %count, ptr %result) {
  %value = getelementptr i8, ptr %arguments, i64 8
  %launch = load ptr, ptr %value
  store ptr %launch, ptr @__TVMBackendParallelLaunch
  ret i32 0
}
