variable "name" {
  type = string
}

variable "secrets" {
  description = "Each secret and who may read it."
  type        = map(list(string))
}

variable "known" {
  description = "Names of those whose value is in `values`."
  type        = set(string)
  default     = []
}

variable "values" {
  type      = map(string)
  default   = {}
  sensitive = true
}
